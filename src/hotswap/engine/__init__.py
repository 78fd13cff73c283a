"""The engine floor: models on the device, tokens out of them.

Importing this package costs nothing; `hotswap.engine.registry` brings torch and transformers.
"""
