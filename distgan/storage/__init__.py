"""Files and addresses: what is read from them, and how it is kept."""
