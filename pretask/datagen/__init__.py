"""Data that pretask makes: tracks of moving objects, rendered rooms."""
