"""Label file formats: readers and writers of label maps, independent of store and pipeline."""
