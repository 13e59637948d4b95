"""Operations: validation, back ends and the plain-PyTorch reference of each."""
