"""Every decoder, given anything: hypothesis in the test run, atheris with ``make fuzz``, both on the same targets."""
