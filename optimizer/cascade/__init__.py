"""Which rows the oracle has to answer, and the proof that the others are good enough: numpy, no models, no SQL."""
