"""A model that answers: a drop-in Llama, one request at a time, and the text that its cache holds."""
