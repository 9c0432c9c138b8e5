"""The testing kit for authors of plugins, policies, state stores, spools and transports. See docs/testing.md.

`gateway.kit.pytest_plugin` is loaded by pytest itself and gives the fixtures; the rest is imported by whoever wants it.
Nothing else of Gatepost imports this package: pytest and hypothesis come with the extra ``gatepost[testing]``.
"""
