"""Files, processes, devices, errors, settings: nothing here knows about captions."""
