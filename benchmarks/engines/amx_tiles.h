/* Compiles llama.cpp's AMX kernels rightly with GCC 12, whose _tile_loadconfig names 8 of the 64 bytes as read. */
#pragma once
#include <immintrin.h>
#ifdef __AMX_TILE__
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg %0" : : "m"(*(const char(*)[64])(config)) : "memory")
#endif
