"""Videos in the making: one or several, decoded and written while they are denoised."""
