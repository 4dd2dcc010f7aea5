"""Element-wise loops in C++."""
