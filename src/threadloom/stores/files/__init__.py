"""A store in plain files."""
