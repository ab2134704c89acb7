"""What `reconsup status` draws, and nothing else: from what was told to lines of text. PURE."""
