"""Images with classes, from files of many forms."""
