"""What a run is: its folder, what its config says about it, its checkpoint's format, its results on disk."""
