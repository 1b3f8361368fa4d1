"""The parts a `CompositeOptimizer` is made of: gradient, update, constraint, feedback."""
