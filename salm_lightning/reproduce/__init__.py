"""The paper, cell by cell: the runs behind each table and figure, and ours beside its numbers."""
