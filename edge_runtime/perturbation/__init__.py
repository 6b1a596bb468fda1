"""The ±1 vector z of a seed, and theta + scale·z: the same bits on every machine.

Philox 4×64 makes the bits; the C kernel or NumPy adds them. Knows vectors and seeds, and nothing of steps, blocks of
a model or bundles.

May import: values, errors.
Must never come in: a rule, a layout, a runtime; floating-point functions whose result depends on the machine.
"""
