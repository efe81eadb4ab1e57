"""What can be known before training: one file per subject, each of which gives findings."""
