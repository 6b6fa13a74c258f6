"""Pictures, captions and words: from files to batches."""
