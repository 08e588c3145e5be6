"""Files: replace them atomically, tell them apart, read texts, and print sizes."""
