"""What is compared with other libraries, where these are installed."""
