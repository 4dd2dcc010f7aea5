"""Element-wise fusion: chains of element-wise operations become loops in C++."""
