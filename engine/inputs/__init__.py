"""Images and labels as they are on disk or behind a URL: sources, decoding, label maps, pairing."""
