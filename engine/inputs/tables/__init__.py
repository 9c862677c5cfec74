"""Images in the rows of tables: Parquet files, Lance datasets, and data sets that Hugging Face's ``datasets`` saved."""
