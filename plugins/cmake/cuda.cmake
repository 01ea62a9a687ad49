# SPDX-License-Identifier: Apache-2.0
#
# Decides whether the CUDA kernels are built and for which GPUs. Sets NQ_CUDA_ENABLED and, when it
# is empty, NQ_CUDA_ARCHITECTURES.

set(NQ_CUDA_ENABLED OFF)
if(NOT NQ_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    # The libraries set their own architectures; this only keeps CMake from asking for one.
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES OFF)
    endif()
    enable_language(CUDA)
    set(NQ_CUDA_ENABLED ON)
  elseif(NQ_CUDA STREQUAL "ON")
    message(FATAL_ERROR "NQ_CUDA is ON, but no nvcc was found; set CMAKE_CUDA_COMPILER")
  endif()
endif()

if(NQ_CUDA_ENABLED)
  set(CMAKE_CUDA_STANDARD 17)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_FLAGS_RELEASE "-O3 -DNDEBUG")
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.6)
    message(FATAL_ERROR "nvcc ${CMAKE_CUDA_COMPILER_VERSION} is too old: 12.6 or newer is needed "
                        "(-DNQ_CUDA=OFF builds without CUDA)")
  endif()
  if(NOT NQ_CUDA_ARCHITECTURES)
    set(NQ_CUDA_ARCHITECTURES 75 80 86 87 89 90)
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 13.0)
      list(APPEND NQ_CUDA_ARCHITECTURES 110 120)
    endif()
  endif()
  message(STATUS "CUDA kernels for sm ${NQ_CUDA_ARCHITECTURES}")
endif()
