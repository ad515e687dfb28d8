"""Reading the command line of ``fit``, ``validate``, ``test`` and ``predict``, and the words in which a mistake is explained."""
