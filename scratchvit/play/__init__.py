"""`scratchvit play`: a page in the reader's browser, on which a model of one's own answers while one draws."""
