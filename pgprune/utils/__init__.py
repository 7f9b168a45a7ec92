"""Files, records, options, processes, devices and tables: nothing about pruning."""
