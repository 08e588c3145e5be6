"""Files: a file is whole or not there; what tells one file from another; texts and sizes."""
