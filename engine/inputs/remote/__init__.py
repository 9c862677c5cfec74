"""Files behind URLs: bounded reads with time limits and retries, and listing."""
