"""What is measured, counted and compared: the cases, their setup, and how two revisions differ."""
