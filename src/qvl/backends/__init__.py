"""Backends that answer questions, with one interface: our engine (`native`), servers (`http`), a fake."""
