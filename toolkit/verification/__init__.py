"""Whether an artefact is what was trained: `toolkit verify`."""
