"""Who protects what: owners who each know one class of a dataset (paper: Section 7.1, Appendix D.2)."""
