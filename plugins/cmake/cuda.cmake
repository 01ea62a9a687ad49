# SPDX-License-Identifier: Apache-2.0
#
# Decides whether the CUDA kernels are built and for which GPUs. Sets NQ_CUDA_ENABLED and, when it
# is empty or "all", NQ_CUDA_ARCHITECTURES.

# AUTO never takes minutes unasked: a machine with nvcc and no GPU gets the CPU kernels alone, unless
# architectures are named.
set(NQ_CUDA_HERE "")
if(NOT NQ_CUDA STREQUAL "OFF" AND NOT NQ_CUDA_ARCHITECTURES)
  find_program(NQ_NVIDIA_SMI nvidia-smi)
  if(NQ_NVIDIA_SMI)
    execute_process(COMMAND ${NQ_NVIDIA_SMI} --query-gpu=compute_cap --format=csv,noheader
                    OUTPUT_VARIABLE NQ_CUDA_HERE ERROR_QUIET TIMEOUT 20)
    string(REGEX MATCHALL "[0-9]+\\.[0-9]" NQ_CUDA_HERE "${NQ_CUDA_HERE}")
    string(REPLACE "." "" NQ_CUDA_HERE "${NQ_CUDA_HERE}")
    list(REMOVE_DUPLICATES NQ_CUDA_HERE)
    list(SORT NQ_CUDA_HERE COMPARE NATURAL)
  endif()
endif()

set(NQ_CUDA_ENABLED OFF)
if(NQ_CUDA STREQUAL "AUTO" AND NOT NQ_CUDA_ARCHITECTURES AND NOT NQ_CUDA_HERE)
  message(STATUS "Building the CPU kernels only: no NVIDIA GPU is here (NQ_CUDA=ON builds for every GPU)")
elseif(NOT NQ_CUDA STREQUAL "OFF")
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
    set(NQ_CUDA_ARCHITECTURES ${NQ_CUDA_HERE})
  endif()
  if(NOT NQ_CUDA_ARCHITECTURES OR NQ_CUDA_ARCHITECTURES STREQUAL "all")
    set(NQ_CUDA_ARCHITECTURES 75 80 86 87 89 90)
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 13.0)
      list(APPEND NQ_CUDA_ARCHITECTURES 110 120)
    endif()
  endif()
  message(STATUS "Building the CPU kernels and the CUDA kernels for sm ${NQ_CUDA_ARCHITECTURES} (minutes)")
endif()
