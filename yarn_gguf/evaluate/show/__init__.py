"""The results of evaluations as tables, pictures and a page."""
