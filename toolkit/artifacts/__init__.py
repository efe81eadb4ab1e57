"""What a run leaves on disk: the manifest, and later the report and the Hub's copy."""
