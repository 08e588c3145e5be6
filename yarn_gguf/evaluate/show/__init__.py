"""Tables, pictures and a page of the results of evaluations."""
