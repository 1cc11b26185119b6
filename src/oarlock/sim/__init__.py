"""The seeded side of the house: the production core on a modelled network and modelled disks, in virtual time.

`stage` is the model, `invariants` what must hold after every step, `notation` the one way to print, `scenario` the
language of the golden files under `tests/scenarios`.
"""
