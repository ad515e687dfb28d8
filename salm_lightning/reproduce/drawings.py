"""The paper's figures from finished victims."""


def fig2(experiment, folder): ...


fig5 = fig6 = fig7 = fig2
