"""Reports: evaluation against true labels, pictures, the HTML page, the live page, and rankings."""
