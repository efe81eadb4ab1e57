"""One module per stage: a recipe goes in, a verified artefact comes out."""
