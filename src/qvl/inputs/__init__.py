"""From files and words to `ModelInputs`, the only thing the engine takes. numpy and integers, no torch."""
