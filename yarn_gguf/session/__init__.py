"""Text that was read, kept in a file: sessions, a folder of them, and conversations."""
