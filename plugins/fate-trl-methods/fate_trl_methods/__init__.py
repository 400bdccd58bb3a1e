"""Methods of the literature as components of fate-trl, one file per family; nothing here imports torch at its top."""
