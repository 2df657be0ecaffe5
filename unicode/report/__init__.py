"""What runs left on disk -> one HTML page that needs no network."""
