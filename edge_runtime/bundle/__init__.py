"""What an exported bundle holds: manifest, layout, layers, adapters, and the memory that training needs.

Describes and checks; it runs nothing.

May import: files, values, errors.
Must never come in: onnxruntime or executorch, the network, this machine's state.
"""
