"""The machine: devices, processes, signals, memory, files and the console."""
