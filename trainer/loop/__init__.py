"""Parts of the training loop: optimizer, settings of the device, and the watch over losses."""
