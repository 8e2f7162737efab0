"""`extproc top`: who spends what, in a terminal."""
