"""Label file formats: reads and writes label maps; knows neither store nor pipeline."""
