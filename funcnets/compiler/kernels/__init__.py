"""C++ kernels, each beside its binding: the operation x.py of the graph for the source x.cpp."""
